"""Whether the answers are still right: accuracy from labels, probes and confidence; drift; what is said of it."""

if __name__ != "lifelist.monitoring":  # `import monitoring` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.monitoring, not {__name__}")
