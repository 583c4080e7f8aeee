package engine

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/alecthomas/units"
	"github.com/prometheus/common/model"

	"github.com/millrace/millrace/pkg/batch"
)

func durationVar(f *kingpin.FlagClause, def time.Duration, target *time.Duration) {
	Named(f.Default(model.Duration(def).String()), (*Duration)(target))
}

func bytesVar(f *kingpin.FlagClause, def int64, target *int64) {
	Named(f.Default(sizeText(def)), (*bytesValue)(target))
}

// Named gives a flag its value, whose errors then say which flag it was: a value by itself does not know.
func Named(f *kingpin.FlagClause, v kingpin.Value) {
	n := namedValue{v, f.Model().Name}
	if _, cumulative := v.(interface{ IsCumulative() bool }); cumulative {
		f.SetValue(namedList{n})
		return
	}
	f.SetValue(n)
}

type namedValue struct {
	kingpin.Value
	name string
}

// Set implements kingpin.Value.
func (n namedValue) Set(s string) error {
	if err := n.Value.Set(s); err != nil {
		return fmt.Errorf("--%s=%s: %w", n.name, s, err)
	}
	return nil
}

func (n namedValue) unnamed() kingpin.Value { return n.Value }

// namedList is a namedValue that may be given more than once.
type namedList struct{ namedValue }

// IsCumulative tells kingpin so.
func (namedList) IsCumulative() bool { return true }

// intValue reads whole numbers.
type intValue int

func (i *intValue) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil {
		return errors.New("must be a whole number")
	}
	*i = intValue(v)
	return nil
}

func (i *intValue) String() string { return strconv.Itoa(int(*i)) }

// int64Value reads whole numbers of a wider type.
type int64Value int64

func (i *int64Value) Set(s string) error {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return errors.New("must be a whole number")
	}
	*i = int64Value(v)
	return nil
}

func (i *int64Value) String() string { return strconv.FormatInt(int64(*i), 10) }

// floatValue reads numbers.
type floatValue float64

func (f *floatValue) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) {
		return errors.New("must be a number")
	}
	*f = floatValue(v)
	return nil
}

func (f *floatValue) String() string { return strconv.FormatFloat(float64(*f), 'g', -1, 64) }

// choice is one of a few words.
type choice struct {
	target *string
	words  []string
}

func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return errors.New("must be one of " + strings.Join(c.words, ", "))
	}
	*c.target = s
	return nil
}

func (c *choice) String() string { return *c.target }

// Duration is the value of a flag for a time, written as Prometheus does: 15m, 2h30m, 1d.
type Duration time.Duration

// Set implements kingpin.Value.
func (d *Duration) Set(s string) error {
	v, err := model.ParseDuration(s)
	if err != nil {
		return errors.New("not a valid duration, such as 15m or 30d") // whose own error would say again what s is
	}
	*d = Duration(v)
	return nil
}

func (d *Duration) String() string { return model.Duration(*d).String() }

// ageValue reads a time or the word forever.
type ageValue time.Duration

// Set implements kingpin.Value.
func (a *ageValue) Set(s string) error {
	if s == "forever" {
		*a = ageValue(batch.Forever)
		return nil
	}
	v, err := model.ParseDuration(s)
	if err != nil {
		return errors.New("must be a time such as 30d, or forever")
	}
	*a = ageValue(v)
	return nil
}

func (a *ageValue) String() string {
	if time.Duration(*a) == batch.Forever {
		return "forever"
	}
	return model.Duration(*a).String()
}

// Bytes is the value of a flag for a size, written as Prometheus does: 512MB, 10GB.
type Bytes = bytesValue

// bytesValue reads sizes as Prometheus writes them: 512MB, 10GB, in powers of 1,024.
type bytesValue int64

func (b *bytesValue) Set(s string) error {
	v, err := units.ParseBase2Bytes(s)
	if err != nil || v < 0 {
		return errors.New("must be a size such as 512MB or 10GB, and not negative")
	}
	*b = bytesValue(v)
	return nil
}

func (b *bytesValue) String() string { return sizeText(int64(*b)) }

// sizeText writes a size as errors and documentation do, so that what --help shows can be found again in an error and be given as a value.
func sizeText(n int64) string { return strings.ReplaceAll(units.Base2Bytes(n).String(), "iB", "B") }

// listValue is a comma-separated list; given twice, the lists are joined.
type listValue []string

func (l *listValue) Set(s string) error {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			*l = append(*l, v)
		}
	}
	return nil
}

func (l *listValue) String() string     { return strings.Join(*l, ",") }
func (l *listValue) IsCumulative() bool { return true }

// Labels is the value of a flag that collects name=value pairs.
type Labels map[string]string

// Set implements kingpin.Value.
func (l *Labels) Set(s string) error {
	for pair := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" || !model.LegacyValidation.IsValidLabelName(name) || name == model.MetricNameLabel {
			err := errors.New("must be name=value with a valid label name")
			if pair != s { // which the error of the flag shows
				err = fmt.Errorf("%q: %w", pair, err)
			}
			return err
		}
		if *l == nil {
			*l = Labels{}
		}
		if earlier, ok := (*l)[name]; ok && earlier != value {
			return fmt.Errorf("label %q has the value %q already", name, earlier)
		}
		(*l)[name] = value
	}
	return nil
}

func (l *Labels) String() string {
	var out []string
	for k, v := range *l {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

// IsCumulative tells kingpin that the flag may be given more than once.
func (l *Labels) IsCumulative() bool { return true }
