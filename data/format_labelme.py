"""LabelMe's JSON files, read and written: one beside each image, with polygons or masks.

Polygons of one `group_id` are the parts of one object. A flag `rejected: PHRASE` of an image that is true names a
phrase that nothing in it fits. A shape's `score` is a field of ours, which LabelMe keeps when it saves the file.
"""
