"""Nouns, colours, places and times, each with synonyms.

CLIP knows only the first before fine-tuning.
"""

SUBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "man": ("man", "guy", "fellow", "gentleman", "person", "adult"),
    "woman": ("woman", "lady", "person", "adult"),
    "boy": ("boy", "child", "kid", "toddler", "youngster"),
    "girl": ("girl", "child", "kid", "toddler", "youngster"),
    "horse": ("horse", "pony", "stallion", "mare", "animal"),
    "dog": ("dog", "puppy", "pup", "hound", "doggy", "animal"),
    "cat": ("cat", "kitten", "kitty", "tomcat", "animal"),
    "bird": ("bird", "songbird", "birdie"),
    "bus": ("bus", "coach", "city bus"),
    "car": ("car", "automobile", "vehicle"),
    "motorcycle": ("motorcycle", "motorbike", "motor bike"),
    "boat": ("boat", "sailboat", "ship"),
    "bicycle": ("bicycle", "bike", "two-wheeler"),
    "kite": ("kite", "paper kite", "toy kite"),
    "ball": ("ball", "beach ball", "rubber ball", "toy ball"),
    "frisbee": ("frisbee", "flying disc", "disc"),
    "stick": ("stick", "branch", "wooden stick"),
    "skateboard": ("skateboard", "board"),
    "surfboard": ("surfboard", "board", "surf board"),
    "umbrella": ("umbrella", "parasol"),
}
ROLE_WORDS: dict[str, tuple[str, ...]] = {
    "bicycle": ("cyclist", "rider", "biker", "bicyclist"),
    "motorcycle": ("motorcyclist", "rider", "biker"),
    "horse": ("rider",),
    "skateboard": ("skateboarder", "skater"),
    "surfboard": ("surfer",),
    "ball": ("player",),
    "frisbee": ("player",),
}
"""People who ride or play with something, whoever they are."""
IRREGULAR_PLURALS = {
    "man": "men",
    "gentleman": "gentlemen",
    "woman": "women",
    "child": "children",
    "person": "people",
}
NUMBER_WORDS: dict[str, tuple[str, ...]] = {
    "two": ("two", "two", "two", "a pair of", "a couple of"),
    "three": ("three", "three", "three", "a group of three", "a group of", ""),
}
"""With nothing but a plural three are meant."""
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "little": ("little", "small", "tiny"),
    "big": ("big", "large", "huge"),
}
SIDE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "bright red"),
    "blue": ("blue", "azure"),
    "green": ("green", "emerald"),
    "yellow": ("yellow", "lemon yellow"),
    "orange": ("orange", "ginger"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "chestnut"),
    "black": ("black", "dark", "jet black"),
    "white": ("white", "pale", "snow-white"),
    "gray": ("gray", "silver", "grey"),
}
CLOTHES: dict[str, tuple[str, ...]] = {
    "man": (
        "shirt",
        "t-shirt",
        "jacket",
        "sweater",
        "shirt and jeans",
        "jacket and dark pants",
        "uniform",
        "coat",
    ),
    "woman": ("dress", "outfit", "skirt and top"),
    "boy": ("shirt", "t-shirt", "hat", "cap", "shirt and cap", "shirt and shorts"),
    "girl": ("dress", "outfit", "skirt and top"),
}
"""A person's colour is that of the clothes."""
SWIMWEAR = ("swimsuit", "bathing suit")
LOOKS: dict[str, tuple[str, ...]] = {
    "man": ("smiling",),
    "woman": ("young", "smiling", "beautiful"),
    "boy": ("young", "happy", "smiling"),
    "girl": ("young", "happy", "smiling"),
    "dog": ("cute", "happy", "floppy-eared"),
    "cat": ("cute", "green-eyed", "furry"),
    "horse": ("beautiful", "lovely"),
}
"""Adjectives that are true of every one."""
COMPANY = ("with {}", "beside {}", "next to {}", "near {}", "by {}")

PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": (
        "on the beach",
        "by the sea",
        "at the seaside",
        "on the sand",
        "along the shore",
        "by the ocean",
        "at the beach",
        "on a sandy beach",
        "near the waves",
        "near the water",
    ),
    "garden": (
        "in the garden",
        "among the flowers",
        "between flower beds",
        "in front of blooming flowers",
        "in the backyard",
        "in a yard with flowers",
        "near the bushes",
    ),
    "park": (
        "in the park",
        "under the trees",
        "on the green lawn",
        "near a row of trees",
        "on the grass",
        "by a tree",
        "in a grassy area",
    ),
    "street": (
        "on the street",
        "in the city",
        "in front of tall buildings",
        "on the road",
        "in town",
        "in front of a building",
        "in front of a house",
    ),
    "snow": (
        "in the snow",
        "on a snowy hill",
        "in a white winter landscape",
        "on snow covered ground",
        "on a snowy slope",
    ),
    "lake": ("on the lake", "by the water", "near the calm lake", "over still water"),
    "mountain": (
        "in the mountains",
        "below the peaks",
        "on a mountain meadow",
        "in front of high mountains",
        "on a grassy hill",
        "near a mountain",
    ),
    "field": (
        "in the field",
        "in a wheat field",
        "on the golden farmland",
        "in the yellow crops",
        "in tall grass",
        "in the countryside",
    ),
    "forest": (
        "in the forest",
        "in the woods",
        "among the trees",
        "between tall trees",
        "in a wooded area",
        "on a dirt path",
        "on a trail",
        "on a dirt track",
    ),
    "pool": ("at the pool", "by the pool", "beside the swimming pool", "at the edge of the pool"),
}
PLACE_WORDS_SWIMMING: dict[str, tuple[str, ...]] = {
    "lake": (
        "in the lake",
        "in the water",
        "in the calm water",
        "in a quiet lake",
        "in a pond",
        "in a body of water",
    ),
    "pool": ("in the pool", "in the water", "in the swimming pool", "in the blue water"),
}
PLACE_WORDS_AFLOAT: dict[str, tuple[str, ...]] = {
    "beach": (
        "at the beach",
        "on the sea",
        "on the ocean",
        "on the waves",
        "near the shore",
        "at the seaside",
    ),
    "lake": ("on the lake", "on the water", "on the calm lake", "on a pond"),
}
PLACE_WORDS_FLYING: dict[str, tuple[str, ...]] = {
    "beach": (
        "over the beach",
        "over the sea",
        "above the waves",
        "at the seaside",
        "in the air by the ocean",
    ),
    "garden": ("over the garden", "above the flowers", "over the flower beds"),
    "park": ("over the park", "above the trees", "over the grass", "in the air in the park"),
    "street": ("over the street", "above the road", "in front of tall buildings", "over the city"),
    "snow": ("over the snow", "above a snowy hill", "over the white ground"),
    "lake": ("over the lake", "over still water", "above the water"),
    "mountain": ("over the mountains", "in front of high mountains", "above a mountain meadow"),
    "field": ("over the field", "above the wheat", "over the yellow crops"),
    "forest": ("over the forest", "among the trees", "above the woods"),
}
PLACE_WORDS_MOVING: dict[str, tuple[str, ...]] = {
    "beach": ("along the beach", "across the sand", "along the ocean"),
    "garden": ("through the garden", "through the flowers"),
    "park": ("through the park", "across the grass", "across the lawn"),
    "street": ("down the street", "down the road", "along the road", "across the street"),
    "snow": ("through the snow", "across the snow", "down a snowy hill"),
    "mountain": ("through the mountains", "up a hill", "down a hill"),
    "field": ("through the field", "across the field", "through tall grass"),
    "forest": ("through the forest", "through the woods", "down a path", "along a dirt trail"),
}
"""Besides PLACE_WORDS, for all that moves on land."""
PLACE_WORDS_ON_FOOT: dict[str, tuple[str, ...]] = {"street": ("on the sidewalk", "on the pavement")}
"""Besides PLACE_WORDS, for people."""
TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": (
        "during the day",
        "under a blue sky",
        "on a sunny day",
        "in daylight",
        "on a clear afternoon",
        "in the afternoon",
    ),
    "sunset": ("at sunset", "at dusk", "in the evening light", "while the sun goes down", "as evening falls"),
    "night": (
        "at night",
        "under the stars",
        "in the moonlight",
        "after dark",
        "on a starry night",
        "in the dark",
    ),
}
NEEDS_CLEAR_SKY = frozenset(
    {
        "under a blue sky",
        "on a sunny day",
        "on a clear afternoon",
        "in the evening light",
        "while the sun goes down",
        "under the stars",
        "in the moonlight",
        "on a starry night",
    }
)
WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "cloudy": ("under a cloudy sky", "under gray clouds", "under dark clouds", "under an overcast sky"),
    "rainy": ("in the rain", "in heavy rain", "while it rains", "in the pouring rain"),
    "foggy": ("in the fog", "in thick fog", "in the mist", "in dense fog"),
}

VIEWS: dict[str, tuple[str, ...]] = {
    "beach": ("an empty beach", "a wide sandy beach", "waves rolling onto the beach", "the sea and a beach"),
    "garden": (
        "a colorful garden with blooming flowers",
        "a garden full of flowers",
        "flowers in a garden",
        "rows of blooming flowers in a colorful garden",
    ),
    "park": ("a green park with trees", "trees in the park", "a lawn and a row of trees"),
    "street": (
        "a street with tall buildings",
        "an empty city street",
        "houses along a road",
        "a city with lit windows",
    ),
    "snow": ("a snowy landscape", "hills covered with snow", "fir trees in the snow"),
    "lake": ("a calm lake", "a lake with still water", "hills behind a quiet lake"),
    "mountain": ("high mountains", "a view of the mountains", "a meadow below snowy peaks"),
    "field": ("a golden field", "a wide field of wheat", "farmland with yellow crops"),
    "forest": (
        "a forest with tall trees",
        "a path through the woods",
        "trees in the woods",
        "a quiet forest",
    ),
    "pool": ("an empty swimming pool", "a pool with blue water", "a swimming pool"),
}
"""Scenes without a subject."""
PLACE_DETAILS: dict[str, tuple[str, ...]] = {
    "beach": ("waves roll in behind", "the sea is in the background"),
    "garden": ("flowers bloom all around", "the bushes stand in a row"),
    "park": ("trees stand in the background", "the grass is green"),
    "street": ("tall houses stand behind", "windows look down on the road"),
    "snow": ("fir trees stand on both sides", "everything is covered in snow"),
    "lake": ("hills rise on the far bank", "the water is still"),
    "mountain": ("snowy peaks rise behind", "the mountains are high"),
    "field": ("the crops are ripe", "hills can be seen far away"),
    "forest": ("tall trees stand all around", "the trees are high"),
    "pool": ("the water is blue", "the pool is full of water"),
}
TIME_DETAILS: dict[str, tuple[str, ...]] = {
    "day": ("the sun shines", "white clouds drift by", "the sky is blue"),
    "sunset": ("the sky glows orange and purple", "the sun is low", "the evening sky is red"),
    "night": ("the moon shines", "stars fill the sky", "it is dark"),
}
"""Of a clear sky."""
WEATHER_DETAILS: dict[str, tuple[str, ...]] = {
    "cloudy": ("clouds cover the sky", "the sky is full of clouds"),
    "rainy": ("rain pours down", "it is raining", "everything is wet"),
    "foggy": ("fog covers everything", "the fog is thick"),
}

UNKNOWN_TO_TEACHER = frozenset(
    [
        "hound",
        "kitty",
        "stallion",
        "fellow",
        "youngster",
        "automobile",
        "emerald",
        "crimson",
        "leaping",
        "leaps",
        "strolling",
        "strolls",
        "seaside",
        "dusk",
        "moonlight",
    ]
)
"""Words the base's text encoder was not trained on, to measure what a graft adds."""
