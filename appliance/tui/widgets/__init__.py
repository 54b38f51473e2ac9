"""What screens are made of, drawn line by line.

- `listing`: a list of rows with a cursor, and `columns`: what it shows of a row, and by what it is sorted.
- `diffview`: the diff of one file. `command_line`: the line on which commands are typed. `scrolling`: the keys by
  which a text is scrolled.
- `lines`: some lines of text, each with a left and a right part. Built on it: `top` (tabs, and the state of serve),
  `keys` (the available keys), `plot` (refreshes as bars) and `chart` (a figure over time).

A row: a screen calls `Listing.show` with the rows in order. The list keeps its cursor on the same row, scrolls so that
it stays where it was on screen, and renders the cells of the rows that can be seen. It compares them with what is
drawn, and redraws only the cells that differ. Enter posts `Chosen` with the row, which the screen handles.

What always holds: the cost of a change is that of the cells that changed, whatever the number of rows, because views
are watched over ssh. A text never leaves its column: it is cut, with an ellipsis. Every text that is drawn has passed
`text.plain`. Colour is never the only sign of anything, because there may be none. A widget knows neither screens nor
the context; it gets what it shows in a call.
"""
