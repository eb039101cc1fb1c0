"""Networks of other libraries as pure functions; each module needs its own alone."""
