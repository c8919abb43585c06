"""Files of models: read, rewritten with what masks do to them, proved, cut smaller."""
