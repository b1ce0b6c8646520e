"""The tools of hermes-nano.

They overlap on purpose: three take a room or a day, several take a title or a code, three handle
money. Choosing the right one needs the whole request, not one word of it. Between them they cover
strings, enumerations, integers, decimals, booleans, arrays and a nested object.
"""

from __future__ import annotations

from catalog import Tool

DAYS = "monday,tuesday,wednesday,thursday,friday,saturday,sunday"
ROOMS = "kitchen,bedroom,office,garage,hall"
COINS = "EUR,USD,JPY,CHF"

TOOLS = (
    Tool(
        "get_weather",
        "Weather in a city",
        {"city": "place", "unit": "enum:celsius,fahrenheit"},
        (
            "get the weather in {city} in {unit}",
            "check how warm {city} is in {unit}",
            "look up the {unit} weather of {city}",
            "tell me the weather for {city}, use {unit}",
        ),
        {"degrees": "int:-20:40", "sky": "enum:clear,cloudy,rainy,windy"},
        "It is {degrees} degrees and {sky} in {city}.",
    ),
    Tool(
        "set_alarm",
        "Wake the user",
        {"hour": "int:0:23", "minute": "int:0:59", "repeat": "bool"},
        (
            "set {repeat} alarm for hour {hour} minute {minute}",
            "wake me with {repeat} alarm at {hour}:{minute}",
            "make {repeat} alarm at {hour}:{minute}",
        ),
        {"alarm": "code"},
        "Alarm {alarm} is set for {hour}:{minute}.",
        {"repeat": ("a daily", "a single")},
    ),
    Tool(
        "send_message",
        "Send a text to a person",
        {"to": "person", "text": "text"},
        (
            "send {to} the message {text}",
            "tell {to} {text}",
            "write to {to} saying {text}",
            "send the text {text} to {to}",
        ),
        {"sent": "code"},
        "Message {sent} went to {to}.",
    ),
    Tool(
        "convert_money",
        "Change one currency into another",
        {"amount": "num:1:9000", "source": f"enum:{COINS}", "target": f"enum:{COINS}"},
        (
            "convert {amount} {source} to {target}",
            "change {amount} {source} into {target}",
            "find how many {target} I get for {amount} {source}",
        ),
        {"total": "num:1:9000"},
        "{amount} {source} is {total} {target}.",
    ),
    Tool(
        "play_song",
        "Play music",
        {"title": "title", "shuffle": "bool"},
        ("play {title} {shuffle}", "start the song {title} {shuffle}", "put on {title} {shuffle}"),
        {"seconds": "int:60:400"},
        "Playing {title} for {seconds} seconds.",
        {"shuffle": ("with shuffle", "in order")},
    ),
    Tool(
        "book_table",
        "Reserve a restaurant table",
        {"place": "title", "people": "int:1:12", "outdoor": "bool"},
        (
            "book a table at {place} for {people} people {outdoor}",
            "reserve {outdoor} at {place} for {people}",
            "get us a table for {people} at {place} {outdoor}",
        ),
        {"ref": "code"},
        "Your table at {place} has the reference {ref}.",
        {"outdoor": ("outside", "inside")},
    ),
    Tool(
        "find_flight",
        "Search flights",
        {"origin": "place", "destination": "place", "day": f"enum:{DAYS}"},
        (
            "find a flight from {origin} to {destination} on {day}",
            "search a {day} flight to {destination} from {origin}",
            "look for flights on {day}, leaving {origin} and going to {destination}",
        ),
        {"flight": "code", "price": "int:40:900"},
        "Flight {flight} to {destination} costs {price}.",
    ),
    Tool(
        "add_event",
        "Put an event on the calendar",
        {"title": "title", "day": f"enum:{DAYS}", "hour": "int:0:23"},
        (
            "add the event {title} on {day} at hour {hour}",
            "put {title} on my calendar for {day} at {hour}",
            "schedule {title} at {hour} on {day}",
        ),
        {"free": "enum:yes,no"},
        "{title} is on {day}, slot free: {free}.",
    ),
    Tool(
        "search_files",
        "Find files by name",
        {"pattern": "file", "limit": "int:1:50"},
        (
            "find files named {pattern}, at most {limit}",
            "search for the file {pattern} with a limit of {limit}",
            "list up to {limit} files called {pattern}",
        ),
        {"count": "int:0:50", "first": "file"},
        "I found {count} files, the first is {first}.",
    ),
    Tool(
        "lock_door",
        "Lock or unlock a door",
        {"room": f"enum:{ROOMS}", "locked": "bool"},
        ("{locked} the {room} door", "{locked} the door of the {room}"),
        {"state": "enum:done,jammed"},
        "The {room} door reports {state}.",
        {"locked": ("lock", "unlock")},
    ),
    Tool(
        "set_heat",
        "Set the heating of a room",
        {"room": f"enum:{ROOMS}", "degrees": "num:10:30"},
        (
            "heat the {room} to {degrees} degrees",
            "set the {room} heating to {degrees}",
            "bring the {room} to {degrees} degrees",
        ),
        {"now": "num:5:30"},
        "The {room} is now at {now} degrees.",
    ),
    Tool(
        "track_parcel",
        "Where a parcel is",
        {"code": "code"},
        ("track the parcel {code}", "see where parcel {code} is", "follow package {code}"),
        {"town": "place", "days": "int:1:9"},
        "Parcel {code} is in {town} and arrives in {days} days.",
    ),
    Tool(
        "create_note",
        "Save a note",
        {"title": "title", "tags": "list:word"},
        (
            "create a note {title} with the tags {tags}",
            "save the note {title} under {tags}",
            "note {title} and tag it {tags}",
        ),
        {"id": "int:1000:99999"},
        "Note {title} has the number {id}.",
    ),
    Tool(
        "draw_point",
        "Draw a point on the map",
        {"label": "title", "at": "point"},
        (
            "draw a point {label} at {at}",
            "mark {label} on the map at {at}",
            "place the label {label} at {at}",
        ),
        {"points": "int:1:99"},
        "{label} is drawn, {points} points in all.",
    ),
    Tool(
        "pay_invoice",
        "Pay a bill",
        {"invoice": "code", "amount": "num:1:9000", "currency": f"enum:{COINS}"},
        (
            "pay invoice {invoice} with {amount} {currency}",
            "pay {amount} {currency} for the bill {invoice}",
            "settle {invoice}, the amount is {amount} {currency}",
        ),
        {"left": "num:1:9000"},
        "Invoice {invoice} is paid, {left} {currency} left.",
    ),
    Tool(
        "sum_numbers",
        "Add numbers",
        {"values": "list:int:1:9999"},
        ("add up {values}", "sum the numbers {values}", "compute the total of {values}"),
        {"sum": "int:100:40000"},
        "The sum is {sum}.",
    ),
    Tool(
        "find_contact",
        "Phone number of a person",
        {"name": "person", "mobile": "bool"},
        (
            "find the {mobile} number of {name}",
            "look up {name}, the {mobile} phone",
            "get me the {mobile} number for {name}",
        ),
        {"phone": "int:100000:999999"},
        "{name} has the number {phone}.",
        {"mobile": ("mobile", "office")},
    ),
    Tool(
        "order_item",
        "Order from the shop",
        {"item": "title", "count": "int:1:99", "gift": "bool"},
        (
            "order {count} of {item} {gift}",
            "buy {count} pieces of {item} {gift}",
            "get {count} times {item} from the shop {gift}",
        ),
        {"order": "code", "price": "num:1:900"},
        "Order {order} costs {price}.",
        {"gift": ("as a gift", "for myself")},
    ),
)

BY_NAME = {tool.name: tool for tool in TOOLS}
