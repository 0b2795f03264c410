"""Images of the Open Container Initiative, and Docker's archives of them: reading a layout, importing, exporting."""
