# placeholder, see below
