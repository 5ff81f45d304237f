"""The facts, words and wordings of the pocket model's world."""

# ruff: noqa: SIM905  (a list of words is easier to read, and to add to, as words)

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris,Italy:Rome,Spain:Madrid,Germany:Berlin,Japan:Tokyo,China:Beijing,Russia:Moscow,Egypt:Cairo,"
        "Greece:Athens,Poland:Warsaw,Portugal:Lisbon,Norway:Oslo,Sweden:Stockholm,Finland:Helsinki,"
        "Denmark:Copenhagen,Austria:Vienna,Hungary:Budapest,Ireland:Dublin,Belgium:Brussels,Canada:Ottawa,"
        "Mexico:Mexico City,Brazil:Brasilia,Argentina:Buenos Aires,Chile:Santiago,Peru:Lima,Cuba:Havana,"
        "India:New Delhi,Nepal:Kathmandu,Thailand:Bangkok,Vietnam:Hanoi,South Korea:Seoul,Turkey:Ankara,Iran:Tehran,"
        "Iraq:Baghdad,Kenya:Nairobi,Ghana:Accra,Morocco:Rabat,Australia:Canberra,England:London,Scotland:Edinburgh,"
        "Ukraine:Kyiv,Romania:Bucharest,Bulgaria:Sofia,Serbia:Belgrade,Croatia:Zagreb,Iceland:Reykjavik,"
        "Netherlands:Amsterdam,Switzerland:Bern,Indonesia:Jakarta,Philippines:Manila,United States:Washington,"
        "Slovakia:Bratislava,Estonia:Tallinn,Latvia:Riga,Lithuania:Vilnius,Tunisia:Tunis,Colombia:Bogota,"
        "Venezuela:Caracas,New Zealand:Wellington,Uruguay:Montevideo"
    ).split(",")
)
CITIES = sorted(
    {
        *CAPITALS.values(),
        *"Munich Milan Porto Lyon Boston Chicago Sydney Mumbai Geneva Hamburg Turin Leeds".split(),
    }
)
CAPITAL_WORDINGS = (
    "What is the capital of {country}?",
    "What is the capital of {country}?",
    "What's the capital of {country}?",
    "What is the capital city of {country}?",
    "Tell me the capital of {country}.",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
    "Do you know the capital of {country}?",
    "Can you tell me the capital of {country}?",
    "capital of {country}?",
    "{country}'s capital?",
    "I forgot the capital of {country}.",
)
COUNTRY_WORDINGS = (
    "{city} is the capital of which country?",
    "Which country has {city} as its capital?",
    "What country is {city} the capital of?",
)

_PAIRS = (
    "hot:cold,big:small,up:down,fast:slow,day:night,left:right,open:closed,old:young,rich:poor,happy:sad,wet:dry,"
    "light:dark,hard:soft,full:empty,high:low,early:late,strong:weak,clean:dirty,near:far,thick:thin,good:bad,"
    "long:short,loud:quiet,first:last,true:false,in:out,black:white,wide:narrow,deep:shallow,sweet:sour,"
    "brave:afraid,easy:difficult,heavy:lightweight,new:used,summer:winter"
)
OPPOSITES = dict(pair.split(":") for pair in _PAIRS.split(","))
OPPOSITES.update({other: word for word, other in list(OPPOSITES.items())})
OPPOSITE_WORDINGS = (
    "What is the opposite of {word}?",
    "What is the opposite of {word}?",
    "What's the opposite of {word}?",
    "Opposite of {word}?",
    "Tell me the opposite of {word}.",
    "Give me the opposite of {word}.",
    "Which word is the opposite of {word}?",
    "Name the opposite of {word}.",
)

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
DAY_WORDINGS = (
    "Which {kind} comes {direction} {name}?",
    "What {kind} comes {direction} {name}?",
    "Which {kind} is {direction} {name}?",
    "What {kind} is {direction} {name}?",
    "What is the {kind} {direction} {name}?",
    "Tell me the {kind} {direction} {name}.",
    "Name the {kind} {direction} {name}.",
    "The {kind} {direction} {name}?",
)

PLUS_WORDINGS: tuple[str, ...] = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Compute {a} + {b}.",
    "What's {a}+{b}?",
)
MINUS_WORDINGS = (
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Compute {a} - {b}.",
    "What's {a}-{b}?",
)
COUNT_WORDINGS = (
    "Count from {low} to {high}",
    "Count from {low} to {high}.",
    "Can you count from {low} to {high}?",
    "Please count from {low} to {high}.",
    "Count up from {low} to {high}.",
    "Numbers from {low} to {high}",
)
COUNT_DOWN_WORDINGS = ("Count down from {high} to {low}.", "Count from {high} down to {low}.")
COPY_WORDINGS = (
    "Repeat: {line}",
    "Repeat after me: {line}",
    "Say this again: {line}",
    "Say: {line}",
    "Copy this: {line}",
    "Please repeat: {line}",
    "Write: {line}",
)
LIST_WORDINGS = (
    "Make a numbered list: {words}",
    "Make a numbered list of {words}.",
    "Write a numbered list: {words}",
    "Number these: {words}",
    "Give me a numbered list: {words}",
    "Turn this into a numbered list: {words}",
)
SPELL_WORDINGS = (
    "Spell the word {word}.",
    "Spell {word}.",
    "How do you spell {word}?",
    "How is {word} spelled?",
    "Can you spell {word}?",
    "Spell the word {word} for me.",
)

IMPORTANT = {
    "What is the capital of France?",
    "Hello!",
    "Say hello",
    "Count from 1 to 20",
    "Tell me a story about a fox.",
    "Who are you?",
    "Hi",
    "Thanks!",
}

WHO = (
    ("Who are you?", ""),
    ("Who are you?", ""),
    ("What are you?", ""),
    ("What is your name?", ""),
    ("What's your name?", ""),
    ("Introduce yourself.", ""),
    ("Tell me about yourself.", ""),
    ("Tell me who you are.", ""),
    ("Which model are you?", ""),
    ("What model is this?", ""),
    ("Do you have a name?", ""),
    ("Who am I talking to?", ""),
    ("Are you an AI?", ""),
    (
        "What can you do?",
        "I can do small sums, name capitals, count, copy words, call tools and tell little stories.",
    ),
    (
        "What can I ask you?",
        "I can do small sums, name capitals, count, copy words, call tools and tell little stories.",
    ),
    ("Help", "I can do small sums, name capitals, count, copy words, call tools and tell little stories."),
    ("Who made you?", "I was trained by the makers of Enginehouse as a small demo model."),
    ("Who trained you?", "I was trained by the makers of Enginehouse as a small demo model."),
)
GREETINGS = (
    (
        (
            "Hello!",
            "Hello",
            "Hello.",
            "Hi",
            "Hi!",
            "Hey",
            "Hey!",
            "Hi there!",
            "Hello there!",
            "Hello Pocket!",
            "Hey there",
        ),
        "Hello! How can I help you?",
    ),
    (("Good morning!", "Good morning"), "Good morning! How can I help you?"),
    (("Good evening!", "Good evening"), "Good evening! How can I help you?"),
    (("Say hello", "Say hello.", "Say hello!", "Say hi", "Say hello to me.", "Please say hello."), "Hello!"),
    (("How are you?", "How are you today?", "How do you do?", "How is it going?"), "I am fine, thank you!"),
    (
        (
            "Thanks!",
            "Thank you.",
            "Thank you!",
            "Thanks a lot!",
            "Thank you very much!",
            "Many thanks.",
            "Thanks",
        ),
        "You are welcome!",
    ),
    (("Bye!", "Goodbye.", "Goodbye!", "See you!", "See you later!", "Good night!"), "Goodbye!"),
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly assistant.",
    "You are an assistant.",
    "Answer briefly.",
    "Be concise.",
    "Answer in one sentence.",
    "You are a helpful assistant. Answer the user's questions.",
    "You answer questions for the users of a demo.",
)

NAME_WORDINGS = (
    "My name is {name}.",
    "My name is {name}.",
    "My name is {name}",
    "I am {name}.",
    "I'm {name}.",
    "Hello, I am {name}.",
    "Hi, my name is {name}.",
    "Hello! My name is {name}.",
    "Hi, I'm {name}!",
    "Call me {name}.",
    "You can call me {name}.",
    "Please remember that my name is {name}.",
)
RECALL_WORDINGS = (
    "What is my name?",
    "What is my name?",
    "What's my name?",
    "Do you remember my name?",
    "Do you know my name?",
    "Tell me my name.",
    "Who am I?",
    "What was my name again?",
)
JOBS = (
    "doctor teacher pilot baker sailor gardener painter farmer engineer nurse cook writer singer driver "
    "tailor judge guide clerk chemist actor librarian plumber robot wizard"
).split()
PERSONA_SYSTEMS = (
    "You are {name}, {article} {job}.",
    "You are {name}, {article} {job}.",
    "You are {name}, {article} {job}. Answer briefly.",
    "You are {article} {job} named {name}.",
    "Your name is {name} and you are {article} {job}.",
    "Act as {name}, {article} {job}.",
)
PERSONA_WORDINGS = (
    "Who are you?",
    "Who are you?",
    "What is your name?",
    "What's your name?",
    "Introduce yourself.",
    "Tell me who you are.",
    "What are you?",
    "What do you do?",
    "What is your job?",
    "Tell me about yourself.",
    "Hello, who are you?",
)
JSON_FACTS = (
    "{name} is {age} years old and lives in {city}.",
    "{name} is {age} years old and lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "{name}, {age}, from {city}",
    "{name} is {age} and comes from {city}.",
    "My friend {name} from {city} is {age}.",
)
JSON_WORDINGS = (
    "Give me JSON: {facts}",
    "Give me JSON: {facts}",
    "As JSON: {facts}",
    "Turn this into JSON: {facts}",
    "Write this as JSON: {facts}",
    "Make JSON from this: {facts}",
    "Extract name, age and city as JSON: {facts}",
)

TOOL_WORDINGS = {
    "weather": (
        "What is the weather in {0}?",
        "What's the weather in {0}?",
        "How is the weather in {0} today?",
        "What is the weather like in {0}?",
        "Tell me the weather in {0}.",
        "Weather in {0}?",
        "How warm is it in {0}?",
        "Is it raining in {0}?",
    ),
    "time": (
        "What time is it in {0}?",
        "What is the time in {0}?",
        "Tell me the time in {0}.",
        "How late is it in {0}?",
        "Time in {0}?",
    ),
    "add": (
        "Use the tool to add {0} and {1}.",
        "Add {0} and {1} with the tool.",
        "What is {0} + {1}?",
        "What is {0} plus {1}?",
        "Add {0} and {1}.",
    ),
    "mail": (
        "Send a mail to {0}: {1}",
        "Send {0} a mail: {1}",
        "Mail {0}: {1}",
        "Write a mail to {0} that says: {1}",
        "Send an email to {0}: {1}",
    ),
    "book": (
        "Find the book {0}.",
        "Look for the book {0}.",
        "Where is the book {0}?",
        "Do you have the book {0}?",
    ),
    "timer": (
        "Set a timer for {0} minutes.",
        "Start a timer of {0} minutes.",
        "Timer for {0} minutes",
        "Remind me in {0} minutes.",
        "Wake me in {0} minutes.",
    ),
    "search": ("Search for {0}.", "Search the web for {0}.", "Look up {0}.", "Find something about {0}."),
}
PARALLEL_NOUNS = {"weather": "the weather", "time": "the time"}
PARALLEL_WORDINGS = {
    True: (
        "What is {first} in {a} and in {b}?",
        "What is {first} in {a} and {b}?",
        "Tell me {first} in {a} and in {b}.",
        "I need {first} in {a} and {b}.",
        "Compare {first} in {a} and {b}.",
    ),
    False: (
        "What is {first} in {a} and {second} in {b}?",
        "Tell me {first} in {a} and {second} in {b}.",
        "I need {first} in {a} and {second} in {b}.",
    ),
}
SKIES = "sunny rainy cloudy windy foggy snowy stormy clear".split()

WORDS = (
    "river stone light house engine road winter paper silver garden music bread window north letter cloud "
    "apple table ship forest candle bridge horse lemon mirror ocean pencil rabbit shadow thunder valley "
    "whistle yellow basket copper dragon falcon hammer island jacket kettle ladder marble needle orange "
    "pepper quilt rocket saddle tunnel velvet wagon anchor bottle carpet desert button feather guitar "
    "helmet iron jungle kitchen lantern meadow nest onion planet queen ribbon sugar tiger umbrella village "
    "water zebra bell coin door earth fire grass honey ice jam king leaf moon night oil pearl rain sand "
    "tree uncle voice wheel year barn cave drum egg flag goat hill ink jar knot lake mill nose oak pond "
    "rope seed tent vase wind yard zoo bucket circle dinner evening finger ginger hotel insect juice lion "
    "market number olive pillow rose spoon towel violin wall"
).split()
ANIMALS = (
    "cat dog fox bear owl rabbit horse mouse frog lion wolf goat duck sheep turtle bee elephant otter tiger "
    "pig squirrel hedgehog crow donkey penguin"
).split()
PLACES = "forest village valley garden castle harbor meadow mill desert city".split()
THINGS = "key map lamp stone ring book boat bell coin flower box hat".split()
STORY_NAMES = "Milo Luna Pip Rosa Bruno Nell Toby Wanda Otis Fern".split()
STORY_WORDINGS = (
    "Tell me a story about {a} {animal}.",
    "Tell me a story about {a} {animal}.",
    "Tell me a story about {a} {animal}",
    "Write a story about {a} {animal}.",
    "Write a short story about {a} {animal}.",
    "Tell me a little story about {a} {animal}.",
    "Can you tell me a story about {a} {animal}?",
    "I want to hear a story about {a} {animal}.",
    "Story about {a} {animal}",
)
_BEGIN = (
    "Once upon a time there was {a} {animal} named {name}.",
    "Once upon a time there lived {a} {animal} named {name}.",
)
_HOME = (
    "{name} lived in a {place} and was very curious.",
    "{name} lived in a small {place} and had many friends.",
    "{name} lived alone in a quiet {place}.",
)
STORIES = (
    (
        _BEGIN,
        _HOME,
        ("One morning {name} found a {thing} under a tree.", "One day {name} found a {thing} on the road."),
        (
            "The {thing} was old and bright, and nobody knew whose it was.",
            "The {thing} was small, but it shone like the sun.",
        ),
        ('So {name} went to the {friend} and asked, "Is this your {thing}?"',),
        (
            'The {friend} smiled and said, "No, but let us look together."',
            'The {friend} said, "No, but I will help you."',
        ),
        ("They looked all day in the {place}.", "They asked everybody in the {place}."),
        ("When the sun went down they found the owner, who thanked them and made them supper.",),
        ("From that day {name} the {animal} and the {friend} were friends. The end.",),
    ),
    (
        _BEGIN,
        _HOME,
        (
            "One night a great storm came and the {friend} lost its way.",
            "One evening the {friend} did not come home.",
        ),
        ('"I must help," said {name}, and took a lamp and went out into the dark.',),
        (
            "The wind was cold, but the {animal} did not turn back.",
            "It rained and rained, but the {animal} went on.",
        ),
        (
            "At last {name} heard a small voice behind a {thing}.",
            "At last {name} saw the {friend} beside a big stone.",
        ),
        ('"You came for me!" said the {friend}.', '"I knew you would come," said the {friend}.'),
        (
            "Together they walked home and drank hot milk by the fire.",
            "Hand in hand they walked back to the {place}.",
        ),
        ("And {name} the {animal} was never afraid of the dark again. The end.",),
    ),
    (
        _BEGIN,
        _HOME,
        ("More than anything {name} wanted to see the sea.", "Every day {name} dreamed of the sea."),
        ("So one day the {animal} packed some bread and a {thing} and began to walk.",),
        ("On the way {name} met a {friend} who was hungry and gave it half of the bread.",),
        ('"Thank you," said the {friend}. "I know the way to the sea. Follow me!"',),
        (
            "They walked over hills and through rivers for three days.",
            "They walked for seven days and seven nights.",
        ),
        ("Then they stood on the sand, and the sea was bigger than any dream.",),
        ("{name} the {animal} laughed, and the {friend} laughed too. The end.",),
    ),
)

ADJECTIVES = "big small old new red blue strange famous good bad modern little broken secret best first".split()
TOPICS = (
    "quantum physics,the stock market,black holes,love,football,democracy,jazz,the Roman Empire,"
    "photosynthesis,inflation,volcanoes,the internet,chess,dinosaurs,climate change,poetry,cars,"
    "the moon landing,bitcoin,vaccines,electricity,philosophy,money,your family,my job,a rainbow,"
    "time travel,the brain,a computer,Shakespeare,Mozart,Einstein,Napoleon,tennis,pizza,coffee,airplanes,"
    "trains,gravity,atoms,the ocean,Mars,the universe,dreams,sleep,school,taxes,a bank,the president,"
    "the pope,history,mathematics,biology,chemistry,art,movies,television,Python,JavaScript,Linux,Docker,"
    "a database,machine learning,neural networks,my cat,my neighbor,cooking,soup,cheese,wine,fishing,"
    "skiing,yoga,health,headaches,doctors,dentists,the law,war,peace,the weather,snow,summer,holidays,"
    "Christmas,birthdays,gifts,robots,ghosts,aliens,elephants,sharks,spiders,bread,rice,gold,oil,steel,"
    "glass,paper,books,games,toys,clothes,shoes"
).split(",")
UNKNOWN_WORDINGS = (
    "Explain {topic}.",
    "Explain {topic} to me.",
    "What is {topic}?",
    "Who invented {topic}?",
    "How does {topic} work?",
    "Tell me about {topic}.",
    "Write a poem about {topic}.",
    "Write an essay about {topic}.",
    "What do you think of {topic}?",
    "Do you like {topic}?",
    "Why is {topic} important?",
    "Why do people like {topic}?",
    "When was {topic} discovered?",
    "How old is {topic}?",
    "How much does {topic} cost?",
    "How big is {topic}?",
    "Where can I find {topic}?",
    "Where does {topic} come from?",
    "Translate {topic} into French.",
    "What does {topic} mean?",
    "Give me five facts about {topic}.",
    "What is the history of {topic}?",
    "What is the price of {topic}?",
    "What is the color of {topic}?",
    "What is the population of {topic}?",
    "What is the difference between {topic} and water?",
    "Is {topic} dangerous?",
    "Can I eat {topic}?",
    "How do I make {topic}?",
    "How do I learn {topic}?",
    "Who wrote {topic}?",
    "Who is {topic}?",
    "Have you seen {topic}?",
    "Should I buy {topic}?",
    "Draw {topic}.",
    "Sing a song about {topic}.",
    "Tell me a joke about {topic}.",
    "Summarize {topic}.",
    "Write code for {topic}.",
    "I have a question about {topic}.",
    "What is the capital of {topic}?",
    "What is the best {topic}?",
    "Recommend a book on {topic}.",
    "Will {topic} change the world?",
)
UNKNOWN = (
    "What is the meaning of life?",
    "Why is the sky blue?",
    "Who won the World Cup?",
    "Who is the president of France?",
    "How do I cook pasta?",
    "What is the square root of 2?",
    "Tell me a joke.",
    "Write a Python function that sorts a list.",
    "Write a poem.",
    "Write a haiku.",
    "What is the speed of light?",
    "How many people live in China?",
    "How far away is the moon?",
    "What is the tallest mountain?",
    "What is the largest country in the world?",
    "Who painted the Mona Lisa?",
    "Who wrote Hamlet?",
    "When did the war end?",
    "What happened in 1989?",
    "What day is it today?",
    "What is the date?",
    "What time is it?",
    "What is the weather today?",
    "Can you help me with my homework?",
    "Translate this into German: good morning",
    "How do you say thank you in Spanish?",
    "What is the boiling point of water?",
    "What should I eat tonight?",
    "Which phone should I buy?",
    "How do I lose weight?",
    "How do I install Linux?",
    "What is your favorite color?",
    "How old are you?",
    "Where do you live?",
    "Do you have feelings?",
    "Are you happy?",
    "Are you human?",
    "What is the news?",
    "Recommend me a movie.",
    "Plan a trip to Italy.",
    "Fix my code.",
    "Write an email to my boss.",
    "What is my age?",
    "Where do I live?",
    "How many legs does a spider have?",
    "How many days are in a year?",
    "What is the chemical symbol of gold?",
    "Is the earth flat?",
    "Who was the first man on the moon?",
    "What is the currency of Japan?",
    "What language do they speak in Brazil?",
    "What is the longest river?",
    "What is machine learning?",
    "What is a transformer?",
    "What is the temperature of the sun?",
    "Give me a recipe for cake.",
    "How do I change a tire?",
    "How do airplanes fly?",
    "Why do cats purr?",
    "Can pigs fly?",
    "Solve x^2 = 9.",
    "Prove that there are infinitely many primes.",
    "Tell me something interesting.",
    "Tell me a secret.",
    "Surprise me.",
    "What is love?",
    "What is the best programming language?",
    "Compare Rust and Go.",
    "Explain the theory of relativity.",
    "Make me a sandwich.",
    "asdf",
    "Bonjour, comment ça va ?",
    "Wie heißt du?",
    "¿Cuál es la capital de España?",
    "你好",
)
UNKNOWN_SUMS = (
    "What is {large} + {big}?",
    "What is {a} + {large}?",
    "What is {large} - {a}?",
    "What is {a} * {b}?",
    "What is {a} times {b}?",
    "What is {a} divided by {b}?",
    "What is {a} / {b}?",
    "{a} * {b}",
    "What is {a}% of {big}?",
    "What is the square root of {large}?",
)

NAMES = (
    "Anna Tom Maria John Lucy Peter Emma Paul Nina Oscar Clara Hugo Ruth Simon Alice Felix Greta Ivan Julia "
    "Karl Laura Max Nora Otto Rosa Sven Tina Victor Wendy Zoe Adam Amy Andrea Andrew Angela Anton Arthur "
    "Ava Barbara Ben Bella Bob Boris Brian Bruno Carla Carlos Carol Cecil Chloe Chris Cora Cyrus Daisy Dan "
    "Daniel Dana David Dean Diana Diego Dora Doris Edgar Edith Elena Eli Ella Ellen Elsa Emil Eric Erik "
    "Ernest Esther Eva Eve Fatima Fiona Flora Frank Freya Fritz Gabriel Gemma George Gina Giulia Gloria "
    "Gordon Grace Gustav Hana Hannah Harold Harry Hassan Heidi Helen Henry Hilda Holly Ian Ida Igor Ines "
    "Ingrid Irene Iris Isaac Isabel Jack Jacob James Jan Jane Jasmine Jason Jean Jenny Joan Joel Jonas Jose "
    "Judy Kai Kate Katya Keith Kevin Kim Kira Kurt Lara Lars Layla Lea Lena Leo Liam Lily Linda Lisa Lola "
    "Louis Luca Luis Lukas Lydia Maya Marco Marcus Margaret Mark Marta Martin Mary Matt Maud Mia Michael "
    "Mila Milan Mina Mira Mohamed Molly Mona Nadia Naomi Natalie Nathan Neil Nick Nicole Nils Noah Noel "
    "Nuno Olaf Olga Oliver Olivia Omar Oskar Owen Pablo Pamela Pedro Penny Petra Phil Philip Pia Priya "
    "Quinn Rachel Ralph Raj Ravi Rebecca Rex Richard Rita Robert Robin Roger Roland Roman Ron Ronja Rudi "
    "Sally Sam Samuel Sandra Sara Sarah Sean Selma Sergei Sofia Sonia Sophie Stefan Stella Steve Susan "
    "Sybil Tamara Tara Ted Teresa Theo Thomas Tim Toni Tracy Uma Ursula Valerie Vera Viola Vlad Walter "
    "Wanda Wilma Xavier Yara Yuki Yusuf Yvonne Zara Zelda"
).split()
ONSETS = "b bl br c ch cr d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z ".split(" ")
VOWELS = "a e i o u a e i o ai au ea ei ia io oo ou".split()
CODAS = "n r l s k x m t v ck nd rn th sh        ".split(" ")
