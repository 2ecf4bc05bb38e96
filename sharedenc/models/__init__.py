"""Networks: one shared encoder per backbone, a detection head, a segmentation head."""
