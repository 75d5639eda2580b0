"""Pascal VOC's indexed PNGs, read and written.

    JPEGImages/NAME.jpg                   the images
    SegmentationClass/NAME.png            the class of each pixel, in VOC's palette; 255 belongs to none
    SegmentationObject/NAME.png           the number of the object of each pixel, from 1
    ImageSets/Segmentation/SPLIT.txt      names of the images, without endings
    labelmap.txt                          name and colour of each class, as CVAT writes it

A pixel belongs to one object: where masks overlap, the smaller one is seen.
"""
