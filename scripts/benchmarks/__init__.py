"""The benchmark rig: what restoring costs on this machine, beside what it costs without this
library.

Run ``python -m scripts.benchmarks`` in a checkout; `suite.run` is the whole of it.
`musetalk-enhance bench` measures what a user can choose, with the defaults on.
"""
