"""From the tables of results to the data of the page's charts: small rows, ready for JSON."""
