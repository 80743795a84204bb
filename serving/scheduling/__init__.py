"""Which request runs when: admission, the queue before each engine, what it counts, and the
processors there are.
"""
