"""What people read: tables in a terminal, the page, JSON documents, traces."""
