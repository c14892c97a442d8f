if __name__ != "lifelist.client":  # `import client` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.client, not {__name__}")
