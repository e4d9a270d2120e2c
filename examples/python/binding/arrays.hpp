// Arrays of Python callers as the views of the library: checked, never copied.
#pragma once

#include <adaptive_k/status.hpp>
#include <adaptive_k/types.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "nanobind.hpp"

namespace adaptive_k_python {

/// Throws ValueError with the message of a refusal.
inline void require(const adaptive_k::status& checked) {
  if (!checked.ok()) throw nb::value_error(checked.message());
}

using input_array = nb::ndarray<nb::ro>;
using output_array = nb::ndarray<>;

/// "float32", "bfloat16", ... as numpy and torch spell it.
inline std::string name_of(nb::dlpack::dtype type) {
  constexpr const char* kinds[] = {"int", "uint", "float", "?", "bfloat", "complex", "bool"};
  const auto code = static_cast<std::size_t>(type.code);
  if (code == 6) return "bool";
  return std::string(code < 7 ? kinds[code] : "?") + std::to_string(type.bits);
}

template <class Array>
std::string shape_of(const Array& array) {
  std::string text = "[";
  for (std::size_t i = 0; i < array.ndim(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return text + "]";
}

[[noreturn]] inline void refuse(const std::string& name, const std::string& problem) {
  throw nb::value_error((name + ": " + problem).c_str());
}

template <class Array>
void require_host(const char* name, const Array& array) {
  if (array.device_type() == nb::device::cpu::value) return;
  if (array.device_type() == nb::device::cuda::value)
    refuse(name, "is on cuda:" + std::to_string(array.device_id()) +
                     ", and this build of adaptive_k has no device part: route a copy on the CPU "
                     "(.cpu()), or call the kernels by include/adaptive_k/cuda");
  refuse(name, "is on a device of DLPack type " + std::to_string(array.device_type()) +
                   ", expected the CPU");
}

/// An array of `T`, [size], its elements beside one another.
template <class T, class Array>
T* vector_of(const char* name, const Array& array, std::int64_t size, const char* dtype,
             bool same_type) {
  require_host(name, array);
  if (!same_type) refuse(name, "is of " + name_of(array.dtype()) + ", expected " + dtype);
  if (array.ndim() != 1 || static_cast<std::int64_t>(array.shape(0)) != size)
    refuse(name, "has the shape " + shape_of(array) + ", expected [" + std::to_string(size) + "]");
  if (size > 1 && array.stride(0) != 1)
    refuse(name, "has a stride of " + std::to_string(array.stride(0)) +
                     ", expected 1: copy it by .contiguous() or numpy.ascontiguousarray");
  return static_cast<T*>(const_cast<std::remove_const_t<T>*>(
      static_cast<const std::remove_const_t<T>*>(static_cast<const void*>(array.data()))));
}

template <class T>
const T* optional_input(const char* name, const std::optional<input_array>& array,
                        std::int64_t size, const char* dtype) {
  if (!array) return nullptr;
  bool same = array->dtype() == nb::dtype<T>();
  if constexpr (std::is_same_v<T, std::uint8_t>)
    same =
        same || (static_cast<int>(array->dtype().code) == 6 && array->dtype().bits == 8);  // bool
  return vector_of<const T>(name, *array, size, dtype, same);
}

template <class T>
T* optional_output(const char* name, const std::optional<output_array>& array, std::int64_t size,
                   const char* dtype) {
  if (!array) return nullptr;
  return vector_of<T>(name, *array, size, dtype, array->dtype() == nb::dtype<T>());
}

/// What elements are: bf16 as such, or the bits of one in uint16 where the caller says so.
enum class float_type { f32, f16, bf16 };

inline float_type float_type_of(const char* name, nb::dlpack::dtype type, bool bits_are_bf16) {
  const auto code = static_cast<int>(type.code);
  if (bits_are_bf16 && code == 1 && type.bits == 16) return float_type::bf16;
  if (code == 2 && type.bits == 32) return float_type::f32;
  if (code == 2 && type.bits == 16) return float_type::f16;
  if (code == 4 && type.bits == 16) return float_type::bf16;
  refuse(name, "is of " + name_of(type) +
                   ", expected float32, float16 or bfloat16 (or its bits in uint16, with the dtype "
                   "named \"bfloat16\")");
}

/// Calls `use` with a null pointer of the type.
template <class Use>
void with_float_type(float_type type, const Use& use) {
  switch (type) {
    case float_type::f32:
      return use(static_cast<float*>(nullptr));
    case float_type::f16:
      return use(static_cast<adaptive_k::float16*>(nullptr));
    case float_type::bf16:
      return use(static_cast<adaptive_k::bfloat16*>(nullptr));
  }
}

template <class Use>
void with_id_type(const char* name, nb::dlpack::dtype type, const Use& use) {
  if (type == nb::dtype<std::int32_t>()) return use(static_cast<std::int32_t*>(nullptr));
  if (type == nb::dtype<std::int64_t>()) return use(static_cast<std::int64_t*>(nullptr));
  if (type == nb::dtype<std::int16_t>()) return use(static_cast<std::int16_t*>(nullptr));
  if (type == nb::dtype<std::uint16_t>()) return use(static_cast<std::uint16_t*>(nullptr));
  refuse(name, "is of " + name_of(type) + ", expected int32, int64, int16 or uint16");
}

/// [rows, columns] with neighbouring columns; returns the row stride in elements.
template <class Array>
std::int64_t require_matrix(const char* name, const Array& array, std::int64_t rows,
                            std::int64_t columns, bool packed) {
  require_host(name, array);
  const bool shaped = array.ndim() == 2 &&
                      (rows < 0 || static_cast<std::int64_t>(array.shape(0)) == rows) &&
                      static_cast<std::int64_t>(array.shape(1)) == columns;
  if (!shaped)
    refuse(name, "has the shape " + shape_of(array) + ", expected [" +
                     (rows < 0 ? std::string("num_tokens") : std::to_string(rows)) + ", " +
                     std::to_string(columns) + "]");
  const bool one_row = array.shape(0) <= 1;
  const std::int64_t stride = one_row ? columns : array.stride(0);
  if ((columns > 1 && array.shape(0) > 0 && array.stride(1) != 1) ||
      (packed ? stride != columns : stride < columns))
    refuse(name, "has strides of " + std::to_string(array.stride(0)) + " and " +
                     std::to_string(array.stride(1)) + " elements, expected rows of neighbours: " +
                     "copy it by .contiguous() or numpy.ascontiguousarray");
  return stride;
}

}  // namespace adaptive_k_python
