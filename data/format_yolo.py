"""YOLO's segmentation labels, read and written.

    data.yaml                 names of the classes and folders of the splits
    images/train/NAME.jpg     the images
    labels/train/NAME.txt     one line per object: class, then x and y of its outline, as shares of width and height

A line is one outline. Several parts and holes are joined to it by bridges without an area: a part ends where it
begins, and between two parts the outline goes and comes back the same way.
"""
