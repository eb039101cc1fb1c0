"""What a run is while it runs, and its folder."""
