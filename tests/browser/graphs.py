"""Small workflows of stock nodes that end in Compare, in the editor's format."""

BLUE, AMBER, GREEN, RED = (32, 96, 192), (224, 160, 32), (32, 160, 80), (192, 48, 64)


def near(found, wanted, tolerance=6):
    """Whether two colours look the same."""
    return all(abs(f - w) <= tolerance for f, w in zip(found, wanted, strict=True))


def node_ids(workflow):
    return [node["id"] for node in workflow["nodes"]]


class Graph:
    """Builds a workflow node by node."""

    def __init__(self):
        self.nodes, self.links = [], []

    def add(self, kind, values=(), inputs=(), outputs=(), pos=(0, 0), size=(260, 150), **extra):
        """Adds a node whose `inputs` are (name, source node) pairs of IMAGE links; returns its id."""
        ident = len(self.nodes) + 1
        node = {"id": ident, "type": kind, "pos": list(pos), "size": list(size), "flags": {}, "order": ident, "mode": 0}
        node |= {"properties": {}, "widgets_values": list(values), "inputs": [], **extra}
        node["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [], "slot_index": 0} for _ in outputs]
        for slot, (name, source) in enumerate(inputs):
            link = len(self.links) + 1
            self.links.append([link, source, 0, ident, slot, "IMAGE"])
            self.nodes[source - 1]["outputs"][0]["links"].append(link)
            node["inputs"].append({"name": name, "type": "IMAGE", "link": link})
        self.nodes.append(node)
        return ident

    def plain(self, colour, size=(64, 64), count=1):
        """An EmptyImage of one colour."""
        r, g, b = colour
        values = [*size, count, (r << 16) + (g << 8) + b]
        return self.add("EmptyImage", values, outputs=["IMAGE"], pos=(0, 220 * len(self.nodes)))

    def batch(self, *colours):
        """A batch of plain pictures."""
        made = self.plain(colours[0])
        for colour in colours[1:]:
            inputs = [("image1", made), ("image2", self.plain(colour))]
            made = self.add("ImageBatch", [], inputs, ["IMAGE"], pos=(320, 220 * len(self.nodes)))
        return made

    def halves(self, left, right):
        """A picture twice as wide as high, of two colours."""
        inputs = [("image1", self.plain(left)), ("image2", self.plain(right))]
        return self.add("ImageStitch", ["right", True, 0, "white"], inputs, ["IMAGE"], pos=(320, 220 * len(self.nodes)))

    def compare(self, original, forgotten, pos=(700, 0), size=(420, 560), save=True, labels=("original", "forgotten"), **extra):
        """A Compare node."""
        inputs = [("original", original), ("forgotten", forgotten)]
        return self.add("UniForgetCompare", [save, "uniforget/test", *labels], inputs, pos=pos, size=size, **extra)

    def workflow(self):
        links, nodes = len(self.links), len(self.nodes)
        return {
            "last_node_id": nodes,
            "last_link_id": links,
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "version": 0.4,
        }


def two_colours(**options):
    """Blue originals, amber after forgetting; the workflow and the id of its Compare node."""
    graph = Graph()
    node = graph.compare(graph.plain(BLUE), graph.plain(AMBER), **options)
    return graph.workflow(), node
