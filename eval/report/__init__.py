"""Numbers to a page: report.html and sweep.html."""
