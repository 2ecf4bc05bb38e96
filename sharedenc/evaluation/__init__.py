"""Scores: COCO AP of boxes and masks, mIoU and pixel accuracy of label maps."""
