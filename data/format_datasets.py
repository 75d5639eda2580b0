"""Parquet files of the library `datasets`, read and written.

    data/SPLIT-00000-of-00001.parquet

There is a row per image: `image` (an Image column, the file inside), `file_name`, `height`, `width`, `requests` (of
`question`, `answer`), `model`, `revision`, and `objects`, a list of `label`, `rle` (`size`, `counts`; null where
nothing fits), `score`, `span`, `rejected`, `request`, `is_crowd`, `box_xyxy`, `area`.
"""
