"""COCO's instances, read and written.

    annotations/instances.json   images, annotations and categories, each with ids from 1
    annotations/results.json     one score per annotation, in COCO's results format
    images/                      the images

Categories are the labels in order of appearance. `neg_category_ids` of an image, a field of LVIS, names those that
nothing in it fits: the rejected phrases.
"""
