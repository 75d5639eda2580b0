"""The folder that this package trains and evaluates on, read and written; see `request_folder`.

What is neither asked nor answered in words becomes a request: a question by its labels, and an answer with a slot for
each.
"""
