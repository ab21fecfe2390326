"""`make bench`: how fast the parts are, each beside a baseline of the same run (docs/develop/benchmarks.md).

__main__.py runs the benchmarks by name; memory.py, tables.py and live.py are one benchmark each; measure.py alternates
ours with the baseline and makes a figure of it; samples.py has the tables and frames; compiled.py builds the C and eBPF
sources that lie beside them.
"""
