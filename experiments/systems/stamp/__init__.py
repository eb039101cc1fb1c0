"""Networks, episodes and arms of a STAMP experiment."""
