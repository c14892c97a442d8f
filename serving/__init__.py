if __name__ != "lifelist.serving":  # `import serving` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.serving, not {__name__}")
