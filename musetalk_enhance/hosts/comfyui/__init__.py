"""ComfyUI: nodes that restore faces, for ``custom_nodes``.

ComfyUI's loader takes this folder as a link, or a file there that imports the two names below.
"""

# absolute: the loader of a linked folder gives it another name
from musetalk_enhance.hosts.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
