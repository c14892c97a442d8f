if __name__ != "lifelist.deploy":  # `import deploy` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.deploy, not {__name__}")
