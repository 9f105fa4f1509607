"""Networks whose layers differ in width, in a form that transformers loads without this package.

`outline` says what config.json holds, `folder` writes, and `modeling_uneven` is the file that goes beside the weights. Nothing is imported
here: the latter is registered while transformers is being imported.
"""
