if __name__ != "lifelist.training":  # `import training` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.training, not {__name__}")
