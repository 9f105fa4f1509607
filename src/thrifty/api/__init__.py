"""What the command line does, as functions: one for each command, of the same name and with the same words; those of groups of commands in
modules of their own (`inspecting`); and `kv_cache`, which is for programs alone."""

from thrifty.api import inspecting as inspecting
from thrifty.api.about import describe, doctor, methods, recipes
from thrifty.api.caches import kv_cache as kv_cache
from thrifty.api.compress import compress, plan, repeat
from thrifty.api.results import compare, evaluate, export, try_out

__all__ = ["compare", "compress", "describe", "doctor", "evaluate", "export", "methods", "plan", "recipes", "repeat", "try_out"]
