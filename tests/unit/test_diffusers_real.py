"""Published models at real size in diffusers' naming, without their weights: the same sites and gates as in ComfyUI's."""

import pytest

from tests.unit import diffusers_zoo as zoo
from uniforget.hosts.diffusers.apply import find_modules
from uniforget.model.families import sizes
from uniforget.model.families.schema import KINDS

# Billions of parameters, from model cards and file sizes (which round).
PUBLISHED = {
    "sd1": 0.86, "sd2": 0.87, "sdxl": 2.6, "sdxl_refiner": 2.3, "ssd_1b": 1.3, "segmind_vega": 0.745, "koala_700m": 0.782,
    "sd3": 2.0, "sd35_medium": 2.3, "sd35_large": 8.1, "flux_dev": 12, "flux_schnell": 12, "flux2": 32, "chroma": 8.9,
    "pixart_alpha": 0.6, "pixart_sigma": 0.6, "hunyuandit": 1.5, "hunyuandit1": 1.5, "lumina2": 2.6, "z_image": 6, "qwen_image": 20,
    "auraflow": 6.8, "wan21_t2v_1.3b": 1.4, "wan21_t2v_14b": 14.3, "wan21_i2v_14b": 16.4, "wan22_ti2v_5b": 5,
    "flux2_klein_4b": 3.9, "flux2_klein_9b": 9.1, "cosmos_predict2_2b": 2, "cosmos_predict2_14b": 14.3, "krea2": 12.8,
    "ideogram4": 9.3, "ernie_image": 8, "hunyuan_image21": 17.4, "kandinsky5_image": 6, "kandinsky5_video_lite": 2, "hidream_i1": 17,
}  # fmt: skip


def counts(sites):
    return {
        kind: {"sites": len(chosen), "gates": sum(s.units for s in chosen)}
        for kind in KINDS
        if (chosen := [s for s in sites if s.kind == kind])
    }


@pytest.mark.parametrize("name", zoo.VARIANTS)
def test_counts_at_real_size(name):
    model = zoo.real(name)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.05), "not that model"
    family, sites, _ = find_modules(model)
    listed = {k: v for k, v in sizes()[name].items() if k in ("family", *KINDS)}
    assert {"family": family.name, **counts(sites)} == listed
    outline = zoo.outline(name, model)
    for kind in KINDS:
        expected = sorted(spot.gates for spot in outline[kind] if not spot.dead)
        assert sorted(s.units for s in sites if s.kind == kind) == expected, kind


# diffusers has no class for them, or one with other Linears.
_OTHERS = {"anima", "chroma_radiance", "lens", "omnigen2", "longcat_image", "mage_flow", "z_image_pixel"}


def test_every_listed_model_that_diffusers_has_is_built():
    own = {name for name, entry in sizes().items() if "like" not in entry}
    assert zoo.VARIANTS.keys() == own - _OTHERS == PUBLISHED.keys()
