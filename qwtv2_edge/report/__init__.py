"""report.html: one self-contained page from the data of report.json. Needs jinja2 (extra ``report``)."""
