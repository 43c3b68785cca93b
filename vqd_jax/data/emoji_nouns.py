"""Everyday words for the things that emoji show, for captions: other nouns of emoji, and nouns of
their categories.
"""

# aliases of the package `emoji` that mean another thing, are no nouns, or should not be shown
UNUSED_ALIASES = frozenset(
    alias.strip()
    for alias in """
    bamboo, boom, bullettrain front, bullettrain side, calling, city sunrise, cold sweat,
    compression, cupid, dagger knife, date, disappointed relieved, do not litter, facepunch,
    feet, film strip, flags, flipper, golf, hankey, harambe, high brightness, hocho,
    ideograph advantage, imp, innocent, joy cat, kissing closed eyes, kissing heart,
    kissing smiling eyes, koko, laughing, loud sound, low brightness, mag right, medal military,
    medal sports, metal, mountain snow, moyai, nail care, newspaper roll, no bell, no good,
    no mouth, ok person, parking, partly sunny, persevere, pout, pray, relaxed, repeat one,
    rice scene, rofl, roll eyes, satisfied, scream cat, shit, sleeping accommodation,
    sleuth or spy, smirk cat, smoking, sob, sound, stars, stuck out tongue, sunny, sweat smile,
    tada, triumph, twisted rightwards arrows, underage, yum, zap
    """.split(",")
)


def _table(text: str) -> dict[str, tuple[str, ...]]:
    pairs = (line.split(":", 1) for line in text.strip().splitlines())
    return {name.strip(): tuple(map(str.strip, nouns.split(","))) for name, nouns in pairs}


NOUNS = _table("""
    mobile phone: cell phone, phone
    telephone: landline, rotary phone
    desktop computer: pc, computer screen
    laptop: notebook computer
    television: tv, tv set
    camera: photo camera
    video camera: camcorder
    radio: transistor radio
    watch: wristwatch
    alarm clock: clock
    light bulb: lamp, bulb
    flashlight: pocket lamp
    magnet: horseshoe magnet
    key: door key
    locked: lock
    hammer: claw hammer
    carpentry saw: saw, handsaw
    axe: hatchet
    crossed swords: swords
    dagger: knife
    kitchen knife: cook's knife
    gem stone: diamond gem, gem
    ring: diamond ring, engagement ring
    top hat: gentleman's hat, magician's hat
    billed cap: baseball cap, cap
    graduation cap: student's cap
    woman's hat: sun hat, straw hat
    t-shirt: shirt, tee
    jeans: pants, denim
    dress: gown
    necktie: tie
    coat: jacket
    scarf: wool scarf
    gloves: mittens
    socks: stockings
    running shoe: trainer, sports shoe
    man's shoe: leather shoe
    high-heeled shoe: stiletto, high heel
    woman's sandal: sandal
    woman's boot: boot
    glasses: reading glasses
    sunglasses: shades
    handbag: ladies' bag
    backpack: school bag
    briefcase: business case
    closed umbrella: folded umbrella
    baby bottle: bottle of milk
    hot beverage: cup of coffee, espresso, latte, mug
    teacup without handle: cup of tea
    wine glass: glass of wine, wine
    cocktail glass: martini, cocktail
    tropical drink: long drink
    beer mug: beer, pint of beer, stein
    clinking glasses: toast with champagne
    glass of milk: milk
    cup with straw: soda, soft drink
    tumbler glass: whisky, glass of whisky
    beverage box: juice box, juice
    bubble tea: boba tea
    fork and knife: cutlery
    hamburger: burger
    french fries: fries, chips
    hot dog: sausage in a bun, frankfurter
    pizza: slice of pizza
    taco: mexican taco
    steaming bowl: noodles, bowl of noodles
    spaghetti: plate of spaghetti
    sushi: sashimi
    fried shrimp: tempura
    cooked rice: bowl of rice
    rice ball: onigiri
    bread: loaf of bread
    baguette bread: baguette, french bread
    croissant: french croissant
    cheese wedge: cheese, piece of cheese
    egg: hen's egg
    cooking: egg in a pan
    bacon: strips of bacon
    poultry leg: chicken leg, drumstick
    cut of meat: steak
    meat on bone: ham
    green salad: bowl of salad
    pancakes: stack of pancakes
    soft ice cream: ice cream cone
    ice cream: sundae
    doughnut: donut
    cookie: chocolate chip cookie
    shortcake: piece of cake, cake
    birthday cake: cake with candles
    cupcake: muffin
    chocolate bar: chocolate
    candy: bonbon, wrapped candy
    lollipop: sucker
    custard: pudding, flan
    honey pot: jar of honey
    popcorn: movie popcorn
    tangerine: clementine
    green apple: granny smith apple
    melon: cantaloupe
    banana: bananas
    strawberry: berry
    cherries: cherry
    grapes: bunch of grapes
    ear of corn: corn, corn on the cob
    hot pepper: chili pepper, chilli
    bell pepper: paprika
    carrot: carrots
    broccoli: broccoli floret
    mushroom: fly agaric
    peanuts: peanut
    dog face: dog's head
    dog: hound
    cat face: cat's head
    cat: house cat
    mouse face: mouse's head
    rabbit face: bunny's head
    rabbit: bunny
    tiger face: tiger's head
    cow face: cow's head
    cow: dairy cow
    pig face: pig's head
    pig: hog
    pig nose: snout
    horse face: horse's head
    horse: stallion
    monkey face: monkey's head
    ewe: woolly sheep
    rooster: cock
    chicken: hen
    baby chick: chick
    hatching chick: chick in an egg
    bird: songbird
    eagle: bird of prey
    duck: mallard
    tropical fish: aquarium fish
    blowfish: pufferfish
    turtle: sea turtle
    crocodile: croc
    sauropod: dinosaur, brontosaurus
    t-rex: tyrannosaurus
    honeybee: bee
    lady beetle: ladybug
    bug: caterpillar
    spider: tarantula
    spider web: cobweb
    snail: garden snail
    spiral shell: seashell, shell
    elephant: african elephant
    hippopotamus: hippo
    rhinoceros: rhino
    camel: dromedary
    two-hump camel: bactrian camel
    bear: grizzly
    polar bear: arctic bear
    chipmunk: squirrel
    paw prints: paws
    rose: single rose
    tulip: spring flower
    hibiscus: tropical flower
    cherry blossom: sakura
    blossom: flower
    bouquet: bunch of flowers, flowers
    cactus: saguaro
    evergreen tree: fir tree, pine tree
    deciduous tree: tree
    palm tree: coconut palm
    christmas tree: decorated tree
    four leaf clover: lucky clover
    maple leaf: autumn leaf, canadian leaf
    fallen leaf: dry leaf
    seedling: sprout
    potted plant: houseplant
    automobile: motor vehicle
    taxi: taxicab
    bus: coach
    police car: patrol car
    fire engine: fire truck
    ambulance: emergency vehicle
    delivery truck: truck, van
    articulated lorry: semi-trailer truck
    racing car: race car, formula one car
    motorcycle: racing bike
    motor scooter: vespa
    bicycle: pedal cycle
    airplane: plane, jet
    small airplane: propeller plane
    helicopter: copter
    rocket: spacecraft
    flying saucer: ufo
    ship: steamship
    sailboat: sailing boat, yacht
    speedboat: power boat
    passenger ship: cruise ship
    locomotive: steam engine
    train: commuter train
    bullet train: shinkansen
    metro: subway, underground train
    fuel pump: gas pump, petrol pump
    vertical traffic light: traffic light, stoplight
    horizontal traffic light: traffic signal
    house: home
    castle: palace
    church: chapel
    hospital: clinic
    school: schoolhouse
    tent: camping tent
    mountain: mountain peak
    ferris wheel: big wheel
    volcano: erupting volcano
    desert island: tropical island
    snowman: snowman in the snow
    tornado: whirlwind
    high voltage: lightning, lightning bolt
    fire: flame, flames
    sun with face: smiling sun
    full moon: moon
    water wave: sea wave, tsunami
    droplet: drop of water, water drop
    cloud: fluffy cloud
    snowflake: ice crystal
    soccer ball: football
    american football: nfl ball
    tennis: tennis ball, tennis racket
    baseball: hardball
    pool 8 ball: eight ball, billiard ball
    bullseye: target, dartboard
    game die: die
    puzzle piece: jigsaw piece
    video game: game controller, gamepad
    trophy: winner's cup
    teddy bear: stuffed bear
    kite: flying kite
    balloon: party balloon
    wrapped gift: gift, gift box
    ribbon: bow
    jack-o-lantern: pumpkin, halloween pumpkin
    fireworks: exploding fireworks
    party popper: confetti
    artist palette: paint palette, palette
    guitar: acoustic guitar
    violin: string instrument
    trumpet: brass horn
    saxophone: sax
    drum: snare drum
    musical keyboard: piano, piano keys
    headphone: headset
    microphone: mic
    bell: church bell
    envelope: letter, mail
    package: box, cardboard box
    pencil: wooden pencil
    paintbrush: brush
    scissors: pair of scissors
    paperclip: paper clip
    pushpin: thumbtack
    straight ruler: ruler
    open book: reading book
    books: stack of books
    newspaper: daily paper
    memo: note with a pencil
    calendar: wall calendar
    wastebasket: bin
    money bag: bag of money
    dollar banknote: dollar bill, money
    credit card: bank card
    shopping cart: trolley
    bathtub: bath tub
    toilet: wc, loo
    couch and lamp: couch
    chair: wooden chair
    door: closed door
    bed: bedstead
    broom: broomstick
    bucket: pail
    soap: bar of soap
    syringe: injection
    pill: medicine, capsule
    adhesive bandage: plaster
    microscope: lab microscope
    telescope: spyglass
    test tube: vial
    globe showing americas: planet earth
    compass: magnetic compass
    baby: little baby
    boy: young boy
    girl: young girl
    man: guy
    woman: lady
    construction worker: builder
    detective: spy
    guard: royal guard
    santa claus: father christmas
    princess: woman with a crown
    mage: magician, sorcerer
    mechanic: car mechanic
    cook: kitchen worker
    health worker: doctor
    astronaut: spaceman
    firefighter: fireman
    ninja: shadow warrior
    superhero: caped hero
    zombie: undead
    ghost: spook
    robot: bot, android
    clown face: clown
    skull: death's head
    pile of poo: poo
    red heart: love heart
    broken heart: heartbreak
    kiss mark: lipstick kiss
    mouth: pair of lips
    eyes: pair of eyes
    victory hand: peace hand, v sign
    raised fist: fist
    flexed biceps: strong arm
    clapping hands: applause
    folded hands: prayer
    smiling face with sunglasses: cool smiley
    face with tears of joy: laughing smiley
    loudly crying face: sobbing smiley
    crying face: sad smiley
    sleeping face: snoring smiley
    thinking face: thinker
    angry face: angry smiley
    nerd face: geek
    smiling face with heart-eyes: smiley in love
    face blowing a kiss: kissing smiley
    winking face: winking smiley
    face screaming in fear: scared smiley
    face with medical mask: masked smiley
    zipper-mouth face: zipped mouth
""")  # name of an emoji → other words for what it shows

KINDS = {
    "animal-mammal": "an animal",
    "animal-bird": "a bird",
    "animal-reptile": "a reptile",
    "animal-marine": "a sea animal",
    "animal-bug": "a small animal",
    "plant-flower": "a flower",
    "plant-other": "a plant",
    "food-fruit": "a fruit",
    "food-vegetable": "a vegetable",
    "food-prepared": "food",
    "food-asian": "asian food",
    "food-marine": "seafood",
    "food-sweet": "a dessert",
    "drink": "a drink",
    "clothing": "clothing",
    "tool": "a tool",
    "musical-instrument": "a musical instrument",
    "transport-ground": "a vehicle",
    "transport-water": "a vessel",
    "place-building": "a building",
    "sport": "sports",
    "cat-face": "a cat's face",
    "face-smiling": "a smiley",
    "face-affection": "a smiley",
    "face-tongue": "a smiley",
    "face-hand": "a smiley",
    "face-neutral-skeptical": "a smiley",
    "face-sleepy": "a smiley",
    "face-unwell": "a smiley",
    "face-hat": "a smiley",
    "face-glasses": "a smiley",
    "face-concerned": "a smiley",
    "zodiac": "a zodiac sign",
    "arrow": "an arrow sign",
    "heart": "a symbol of love",
}  # subcategory → what all its emoji are, except those of NO_KIND

NO_KIND = frozenset(
    name.strip()
    for name in """
    anchor, baby bottle, backpack, balance scale, bomb, boomerang, bottle with popping cork,
    bouquet, bow and arrow, brick, broken chain, broken heart, bubbles, building construction,
    bus stop, butter, canned food, chains, chestnut, clutch bag, construction, coral, cricket,
    crossed swords, crown, dagger, dove, egg, empty nest, exploding head, fallen leaf, feather,
    folding hand fan, fuel pump, gear, gem stone, glasses, goal net, hair pick, hammer and pick,
    hammer and wrench, handbag, hatching chick, heart exclamation, honey pot, hook,
    horizontal traffic light, houses, ice, ladder, leaf fluttering in wind, link, lipstick,
    love letter, magnet, maple leaf, medical symbol, mending heart, metro, microbe, motorway,
    mushroom, musical keyboard, nest with eggs, nut and bolt, oil drum, olive, paw prints,
    peanuts, phoenix, pig nose, police car light, popcorn, pouring liquid, prayer beads, purse,
    railway track, ring, ring buoy, rock, roller skate, rosette, salt, sheaf of rice, shield,
    shopping bags, spider web, spiral shell, stadium, station, statue of liberty, stop sign,
    sunglasses, teapot, tokyo tower, tomato, toolbox, unicorn, vertical traffic light, wedding,
    wheel, white cane, white flower, wing, wood
    """.split(",")
)
