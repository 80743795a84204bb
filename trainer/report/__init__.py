"""Pages and pictures for people: the report of a run, the page of a comparison, contact sheets."""
