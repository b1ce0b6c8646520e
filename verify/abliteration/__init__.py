"""The gate of an abliteration: are refusals gone, is all else still there, is the edit whole?

Every edited artifact is compared with the unedited one of the same type, so that what quantization
does is not counted as damage of the edit.
"""
