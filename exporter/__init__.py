if __name__ != "lifelist.exporter":  # `import exporter` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.exporter, not {__name__}")
