"""The ground truth: a small text-to-image model that really memorizes, its training pictures, and a verdict on what it draws (MODEL_CARD.md)."""
