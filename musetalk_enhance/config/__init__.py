"""Options: their schema, where they are read from, and the flags that set them."""
