"""
The sentences of ViP-LLaVA's region data: what its checkpoints were trained and tested with.

Each list is drawn from with a seeded generator, so its order and length decide which sentence a seed gives; they are
those of llava/visual_prompt_organizer.py.
"""

# Visual7W and VCR: multiple choice
LETTERS = "ABCD"
ANSWER_BY_LETTER = "Answer with the option's letter from the given choices directly."

# PointQA-LookTwice
EXEMPLARY_OBJECT = " The exemplary object is within the rectangle.\nAnswer the question using a single word or phrase."

# RefCOCOg: the region's phrase is missing in the last one in the original, too (its f-string has no placeholder).
DESCRIBE_REGION = ("Describe the object with the visual prompt.", "Describe the pointed region.")
DESCRIBE_OBJECT = "Describe the object ."
SHORT_PHRASE = " Please provide a short phrase."

# Visual Genome relations
RELATION = (
    "Please describe the relationship between the subject {subject} and the object {object}. Provide a short triplet "
    "(subject, relationship, object) to represent this. Here, the subject and object are noun phrases, and the "
    "relationship can be verbs or prepositions."
)

# Flickr30k entities
CAPTION_REQUESTS = {
    "semantic": (
        "Please describe the image with the object referred to by the visual prompts; please do not mention the "
        "actual visual prompt.",
        "Describe the provided image using the semantic object referred to by the visual prompts. Please produce a "
        "sentence in natural language, and do not mention the actual visual prompts.",
    ),
    "semantic_visual_prompt": (
        "Please describe the image with the object referred to by the visual prompts; make sure to mention both the "
        "actual visual prompt and the semantic category.",
        "Please describe the image with the object referred to by the visual prompts; make sure to mention both the "
        "actual visual prompt, such as a red box, and the semantic category, such as a dog.",
    ),
}
CAPTION_HINTS = (" Hint: the visual prompts are:", " The visual prompts are:")
ABBREVIATIONS = ("Dr.", "Mrs.", "Mr.", "Ms.", "e.g.", "i.e.", "U.S.A.")

# VCR: training
QUESTION_PREFIXES = (
    "Based on the provided source image, please answer this question: ",
    "In the context of the source image, can you answer: ",
    "With reference to the source image, please respond to the following query: ",
    "Considering the source image, what's your answer to: ",
    "Please provide an answer for the subsequent question, keeping the source image in mind: ",
    "Taking into account the source image, please answer: ",
    "After observing the source image, could you please answer the following: ",
    "Upon examining the source image, what would your answer be to: ",
    "Using the source image as a reference, please respond to: ",
    "In light of the source image, could you please answer: ",
)
OPTIONS_PREFIXES = (
    "Available choices are as follows: ",
    "Select from the options below: ",
    "You may choose from the following: ",
    "Your choices include: ",
    "Here are your options: ",
    "Please pick one from the given possibilities: ",
    "The following options are available: ",
    "You have the following selections: ",
    "Which among these would you choose: ",
    "You can select from these alternatives: ",
)
WHY_QUESTIONS = (
    "why?",
    "why",
    "What's the rationale for your decision?",
    "What led you to that conclusion?",
    "What's the reasoning behind your opinion?",
    "Why do you believe that to be true?",
    "Can you explain the basis for your thinking?",
    "What factors influenced your perspective?",
    "How did you arrive at that perspective?",
    "What evidence supports your viewpoint?",
    "What makes you think that way?",
    "What's the logic behind your argument?",
    "Can you provide some context for your opinion?",
    "What's the basis for your assertion?",
    "Why do you hold that belief?",
    "What experiences have shaped your perspective?",
    "What assumptions underlie your reasoning?",
    "What's the foundation of your assertion?",
    "What's the source of your reasoning?",
    "What's the motivation behind your decision?",
    "What's the impetus for your belief?",
    "What's the driving force behind your conclusion?",
    "Why do you think that?",
    "What's your reasoning?",
    "What makes you say that?",
    "Why do you feel that way?",
    "What's the story behind that?",
    "What's your thought process?",
    "What's the deal with that?",
    "What's the logic behind it?",
    "Why do you believe that?",
    "What's the real deal here?",
    "What's the reason behind it?",
    "What's the thought process behind your decision?",
    "What's the rationale for your opinion?",
    "Why do you have that impression?",
    "What's the background to that?",
    "What's the evidence that supports your view?",
    "What's the explanation for that?",
)
ADJECTIVES = (
    "The correct",
    "The most accurate",
    "The best",
    "The ultimate",
    "The final",
    "The only",
    "The ideal",
    "The optimal",
    "The most fitting",
    "The definitive",
)
PUNCTUATION = (":", "->", "→", "::", "—", ";", "|", "⇒")
# Filled with the letter, the answer and words drawn for each, see `vcr_questions.choose_answer`.
LETTER_ANSWERS = (
    "({letter})",
    "({letter})",
    "{adjectives[0]} answer is ({letter})",
    "{adjectives[1]} answer is ({letter})",
    "({letter}){punctuation[0]} {content}",
    "({letter}){punctuation[1]} {content}",
    "{adjectives[2]} answer is ({letter}) — {content}",
    "{adjectives[3]} answer is ({letter}) — {content}",
    "({letter}) — {adjectives[4]} because {content}",
    "({letter}) — {adjectives[5]} because {content}",
    "Answer ({letter}): {content}",
    "Answer ({letter}): {content}",
    "Opt for ({letter}) if {content}",
    "Opt for ({letter}) if {content}",
)

# VCR: test of the rationale; no space follows the first sentence's period in the original either.
RATIONALE = (
    "I give you a question and its answer, I need you to provide a rationale explaining why the answer is right. "
    '"{question}" The answer is "{answer}".What is the rationale for this decision?'
)
