"""Abliteration: a direction that decides whether a model refuses is found and taken out of weights.

`measure` records means of the residual stream over prompts that are refused and prompts that are
not, `select` ranks directions by what the model does without them, `apply` writes an EDIT folder,
and `hermes-quant quantize --abliterate EDIT` makes artifacts of the edited weights. Everything but
measuring and selecting works without torch.
"""
