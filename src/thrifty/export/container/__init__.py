"""Our own container, for results that no public format holds at their rate: `quant_method: thrifty` (docs/container.md).

A layout of codes is one module here; it joins by existing. Writing is `layout_of(..).encode`, reading goes through `Container`.
"""

from thrifty.export.container.folder import METHOD, VERSION, Container, container_config
from thrifty.export.container.inputs import LAYOUTS, Inputs
from thrifty.export.container.layout import Held, Layout, Parts, estimate, layout_of, layouts, names_of

__all__ = [
    "LAYOUTS",
    "METHOD",
    "VERSION",
    "Container",
    "Held",
    "Inputs",
    "Layout",
    "Parts",
    "container_config",
    "estimate",
    "layout_of",
    "layouts",
    "names_of",
]
