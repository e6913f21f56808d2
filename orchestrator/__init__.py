"""The driver's side: what was asked, who runs it, what came back."""
