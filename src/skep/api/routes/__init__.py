"""The routes, one module per kind of object. They know HTTP and nothing of how nodes and clusters are made."""
