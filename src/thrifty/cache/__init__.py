"""Methods that act on keys and values while a model runs: which are kept, and in how many bits.

`base.py` holds the verbs, `layer.py` the layer of a transformers cache that keeps what a method packs, `build.py` the cache of a model;
every other file is one method. They work on bare tensors:

    from thrifty.cache.kivi import KIVI

    packed = KIVI(bits=4).store_values(values)      # values [batch, kv_heads, length, head_dim]
    again = KIVI(bits=4).load_values(packed)
"""
