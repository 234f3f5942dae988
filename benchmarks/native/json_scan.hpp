// Just enough JSON to pick values out of well-formed objects without building a tree: the load
// generator looks at three members of a chunk, a parser would cost more than the rest of it.
// All functions work on views into the caller's text and return an empty view for what is absent.
#pragma once

#include <charconv>
#include <cstddef>
#include <string_view>

namespace json {

inline std::string_view trim(std::string_view text) {
  while (!text.empty() && static_cast<unsigned char>(text.front()) <= ' ') text.remove_prefix(1);
  while (!text.empty() && static_cast<unsigned char>(text.back()) <= ' ') text.remove_suffix(1);
  return text;
}

// End of the value that starts at `i`: behind its closing quote, bracket or last character.
inline std::size_t end_of_value(std::string_view text, std::size_t i) {
  std::size_t depth = 0;
  bool quoted = false;
  for (; i < text.size(); i++) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') i++;
      else if (c == '"' && (quoted = false, depth == 0)) return i + 1;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      depth++;
    } else if (c == '}' || c == ']') {
      if (depth == 0) return i;
      if (--depth == 0) return i + 1;
    } else if (depth == 0 && (c == ',' || c == ':')) {
      return i;
    }
  }
  return text.size();
}

// The raw value of a member of an object: `"x"` with its quotes, `{…}`, `1.5`, `null`.
inline std::string_view member(std::string_view object, std::string_view key) {
  object = trim(object);
  if (object.empty() || object.front() != '{') return {};
  std::size_t i = 1;
  while (i < object.size() && object[i] != '}') {
    const std::size_t key_end = end_of_value(object, i);
    const std::string_view name = trim(object.substr(i, key_end - i));
    if (key_end >= object.size() || object.find(':', key_end) == std::string_view::npos) return {};
    const std::size_t start = object.find(':', key_end) + 1;
    std::size_t begin = start;
    while (begin < object.size() && static_cast<unsigned char>(object[begin]) <= ' ') begin++;
    const std::size_t end = end_of_value(object, begin);
    if (name.size() == key.size() + 2 && name.substr(1, key.size()) == key)
      return trim(object.substr(begin, end - begin));
    i = end;
    while (i < object.size() && (object[i] == ',' || static_cast<unsigned char>(object[i]) <= ' ')) i++;
  }
  return {};
}

inline std::string_view first_element(std::string_view array) {
  array = trim(array);
  if (array.size() < 2 || array.front() != '[') return {};
  std::size_t begin = 1;
  while (begin < array.size() && static_cast<unsigned char>(array[begin]) <= ' ') begin++;
  return trim(array.substr(begin, end_of_value(array, begin) - begin));
}

inline double number(std::string_view value, double otherwise) {
  double found = otherwise;
  std::from_chars(value.data(), value.data() + value.size(), found);
  return found;
}

// The inside of a string value, escapes left as they are.
inline std::string_view text(std::string_view value) {
  return value.size() >= 2 && value.front() == '"' ? value.substr(1, value.size() - 2) : std::string_view{};
}

}  // namespace json
