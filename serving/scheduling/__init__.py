"""Which request runs when: admission, the queue before each engine, memory and processors."""
