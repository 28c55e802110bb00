"""The front doors: Python, command line, web page. Nothing imports them."""
