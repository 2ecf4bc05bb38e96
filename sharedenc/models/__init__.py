"""Networks: one shared encoder per backbone, a detection head, a segmentation head."""

# Here, where it costs no import of torch to see that no plugin is installed.
ENTRY_POINT_GROUP = "sharedenc.backbones"
