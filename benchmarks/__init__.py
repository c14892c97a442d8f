if __name__ != "lifelist.benchmarks":  # `import benchmarks` from a checkout would give every class a second copy
    raise ImportError(f"import lifelist.benchmarks, not {__name__}")
